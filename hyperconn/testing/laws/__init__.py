"""The laws, by what they are about; ``hyperconn.testing.all_laws`` lists them."""
