"""A mode of its own, as small as a mode can be: a part is a number, and to train it is to count it up, once a round."""
