"""The live page: a small HTTP server that shows a group to whoever has its link, and changes nothing."""
