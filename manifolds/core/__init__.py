"""What every set is made of: the base class, invariants, symmetries, options and errors."""
