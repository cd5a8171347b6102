"""How blocks meet processes: applied to a model from outside, which never knows."""
