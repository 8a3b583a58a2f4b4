"""The method: paths, flow map, objectives, networks, samplers, normaliser, and the policy that holds them together."""
