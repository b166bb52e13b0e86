"""Offline: labelled images become a model bundle."""
