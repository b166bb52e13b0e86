"""What training and serving must do in exactly the same way.

Imports neither of the other rooms, and on its own needs nothing heavier than numpy: backends and decoders load
when they are asked for.
"""
