"""Those who mean no good, for tests and for the benchmark ``hostile``: what they do stands here and nowhere else.

An *outsider* has no join code, an *insider* has one. What each of their attacks sends is bounded, so that it ends by
itself; whoever calls them decides how often. They attack what runs on this machine's loopback, and nothing else.
"""
