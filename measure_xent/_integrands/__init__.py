"""What is integrated: functions, densities and their algebra; what an ``Integral`` is; the table of rules. Knows kernels."""
