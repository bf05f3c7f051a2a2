"""The model's parts: plain `nn.Module`s from tensors to tensors that know nothing of training.

A part is one file in the folder of its role, and the file's name is the word that configuration uses.
`components.contracts` says what each role takes and gives.
"""
