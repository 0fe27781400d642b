"""Types of the service in penstock/placement/v1alpha1/placement.proto."""

from collections.abc import AsyncIterator

import grpc
import grpc.aio

from controller import placement_pb2 as pb

class PlacementStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    GetPlan: grpc.UnaryUnaryMultiCallable[pb.GetPlanRequest, pb.GetPlanResponse]
    WhatIf: grpc.UnaryUnaryMultiCallable[pb.WhatIfRequest, pb.WhatIfResponse]
    Explain: grpc.UnaryUnaryMultiCallable[pb.ExplainRequest, pb.ExplainResponse]
    WatchPlans: grpc.UnaryStreamMultiCallable[pb.WatchPlansRequest, pb.WatchPlansResponse]

class PlacementServicer:
    async def GetPlan(
        self, request: pb.GetPlanRequest, context: grpc.aio.ServicerContext[pb.GetPlanRequest, pb.GetPlanResponse]
    ) -> pb.GetPlanResponse: ...
    async def WhatIf(
        self, request: pb.WhatIfRequest, context: grpc.aio.ServicerContext[pb.WhatIfRequest, pb.WhatIfResponse]
    ) -> pb.WhatIfResponse: ...
    async def Explain(
        self, request: pb.ExplainRequest, context: grpc.aio.ServicerContext[pb.ExplainRequest, pb.ExplainResponse]
    ) -> pb.ExplainResponse: ...
    def WatchPlans(
        self, request: pb.WatchPlansRequest, context: grpc.aio.ServicerContext[pb.WatchPlansRequest, pb.WatchPlansResponse]
    ) -> AsyncIterator[pb.WatchPlansResponse]: ...

def add_PlacementServicer_to_server(
    servicer: PlacementServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
