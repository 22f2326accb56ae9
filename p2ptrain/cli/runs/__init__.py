"""How a run is kept up, ended, and told of."""
