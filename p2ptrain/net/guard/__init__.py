"""What keeps others from costing this node more than it can bear: connections, queues, announcements."""
