"""Fine-tuning in a cluster: the stage's own code in a RayJob, or on a standing Ray, watched from the task that asked.

``launcher.launch`` is called by the component; ``driver`` runs in the cluster.  They meet in the store: a folder for
each try holds the request, the lease that the launcher renews, and the outcome that the driver leaves.
"""
