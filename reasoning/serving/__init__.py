"""Who answers a decision: routes and their lease, the breaker, the call of a model, shadow arms."""
