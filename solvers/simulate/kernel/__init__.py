"""The moving parts of the simulation: plain functions over records of whole numbers, run as they are or compiled.

Nothing here reads names, seconds or profiles: times are picoseconds (ticks), everything else is an index. The shell
(``solvers.simulate.fleet``) makes the records, calls ``loop.run`` and reads them again. The same source runs in two
forms: records as objects in lists, or as rows of arrays with the functions compiled (``compiled``). All numbers are
64-bit integers, so both forms agree to the bit.

Order at equal times: arrivals in the order of their index, then clients that ask again, links, replicas and gateways,
each kind by index. An arrival at the tick of a boundary is therefore seen by it, and whoever gives up loses a tie.
"""
