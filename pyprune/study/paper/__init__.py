"""The paper's tables and figures drawn from measured files, with the paper's own numbers beside."""
