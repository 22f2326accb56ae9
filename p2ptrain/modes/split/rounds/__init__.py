"""What a peer knows and keeps of the group's rounds: the parts that its role is made of."""
