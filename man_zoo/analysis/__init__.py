"""What trained networks have learnt, depth by depth: separability, similarity, exits, maps."""
