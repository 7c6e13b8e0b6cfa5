"""Estimates of the target loss after fine-tuning on any subset, from a gradient store alone: no model is loaded."""
