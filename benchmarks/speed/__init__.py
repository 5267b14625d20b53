"""qllava against its peers, step by step: same model, same samples, same trainable set.

shapes (models with random weights) and sets (samples) make what is raced with; contenders names who takes part; worker is one
contender's process, with peers and stopwatch in it; race starts the workers and lets them step in turn; figures turns their
reports into a result.
"""
