"""The last layer, fitted by the whole group, and what the group finds when it looks at its model."""
