"""Prompts whose responses a program checks, without a judge: IFEval, IFBench, and your own with a known answer."""
