"""Many copies of one engine on a Ray cluster: settings, balancing, the actors. Training on Ray is not here."""
