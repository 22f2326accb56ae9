"""Split training: weak peers train the front of their copy of the model, and helpers the rest of it."""
