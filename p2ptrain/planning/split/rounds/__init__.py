"""What a round takes: training, played through; its end; and what being in the group takes of each device."""
