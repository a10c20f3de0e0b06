"""What learns: a dataset in, an artifact that answers with calibrated probabilities out."""
