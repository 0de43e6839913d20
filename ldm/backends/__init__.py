"""How a forward pass is executed: on which device, in which precision."""
