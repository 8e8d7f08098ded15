//! What a GPU's memory changes about budgets, states and tensors placed by hand.
