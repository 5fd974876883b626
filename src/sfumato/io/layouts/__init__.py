"""How others name and shape the tensors of our networks: rules that read and write, one for every key."""
