"""The actor: leases prompt groups, has its engine generate the answers in the routed languages, has them scored, and
submits them to the learner."""
