"""Labels by people: what to label next, and how far several labellers agree."""
