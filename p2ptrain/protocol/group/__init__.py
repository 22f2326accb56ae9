"""Who is in the group, what each says of itself, and how good the links are."""
