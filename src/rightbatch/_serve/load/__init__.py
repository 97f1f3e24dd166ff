"""Load tests of the engine, and `rightbatch bench serve`.

arrivals      schedules of arrivals      load_test        runs one schedule, open loop
rate_search   the largest rate in time   early_stopping   how many items a result needs
bench         `rightbatch bench serve`   export           its result as settings of other servers
"""
