"""Networks: every one is called as `network(x_t, t, s, cond)` and returns a tensor shaped like x_t.

x_t (batch, horizon, action_dim), t and s (batch,) in [0, 1], cond (batch, cond_dim).
"""
