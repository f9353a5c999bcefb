class CheckpointNote:
    pass
