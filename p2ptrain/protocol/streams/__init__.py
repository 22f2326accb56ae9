"""Stage messages of a pipeline from peer to peer, in order, with credits."""
