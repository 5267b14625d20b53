"""LLaVA JSONs built from raw data sets: what a mix is (mix), each set's published layout (a file a set or kin), how their files are
read record by record (raw), what becomes of them (rules), and the file that is written (build). Imports no torch.
"""
