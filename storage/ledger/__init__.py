"""The ledger: what was spent, what may be spent, and what of ours exists at the providers."""
