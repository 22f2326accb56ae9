"""Admission of remote peers, and the frames that go to and come from them."""
