"""Caps of placed pools, one linear programme: what a plan rounds its caps with, and every tick after it.

``cells`` are its arrays, ``model`` the programme; only ``model`` loads the modeller.
"""
