#!/bin/sh
# What moltworker's Worker starts and looks for in the list of processes. moltinit runs the gateway; this brings it the
# environment that the Worker gives, and stays as long as the gateway does.
exec moltinit attach gateway
