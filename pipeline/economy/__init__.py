"""Whether a model pays: what the log shows of a decision type, what each way of serving costs, and the verdict."""
