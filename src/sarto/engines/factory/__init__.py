"""NN-Factory: one backbone with gates, trained once; then a small static model for every task and limit."""
