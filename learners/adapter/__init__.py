"""LoRA adapters of a causal language model: trained with TRL and PEFT, answered from their next-token probabilities."""
