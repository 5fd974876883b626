"""Networks: tensors in, tensors out, torch only. They know no schedule, no file and no configuration."""
