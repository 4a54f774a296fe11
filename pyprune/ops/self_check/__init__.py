"""The operators' check of themselves: what each is given (`cases`) and how its result is judged (`judgement`)."""
