"""What a model of each task decides with: a choice, a list of actions, open text."""
