"""The benchmarks of the papers and the quality of judges: numbers from files, or from a judge that is asked."""
