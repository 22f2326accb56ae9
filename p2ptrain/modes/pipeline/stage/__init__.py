"""What a peer knows and keeps of its stage, and of the group's: the parts that its role is made of."""
