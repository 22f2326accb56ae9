"""Content-addressed bytes from peer to peer: who asks whom for which chunk, and what is served."""
