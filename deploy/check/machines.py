"""The folders of providers that rent out machines and containers, each tried from its launch to the
request that ends the bill. Called by check/main.py."""

import base64
import json
import os
import re
import shlex
import subprocess

import jsonschema
import yaml

from world import DEPLOY, JOB, ROOT, World, docker_run, env_file, fill, has_job, need

AWS_KEYS = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"]
COMMON = ["ANNEAL_IMAGE", "AGENT_STORE", "AGENT_JOB", "AGENT_TOKEN"]


def once_gone(gone, here, status=200):
    """An answer that changes once the set `gone` is no longer empty."""
    return lambda match, body: (404, {"error": "not found"}) if gone else (status, here)


def end(gone, status=200, answer=None):
    """The answer to whoever ends the machine."""

    def respond(*_):
        gone.add(1)
        return status, {} if answer is None else answer

    return respond


def cloud_config(text):
    """Checks cloud-init's user data against its own schema and gives it."""
    need(text.startswith("#cloud-config\n"), "user data must begin with #cloud-config")
    config = yaml.safe_load(text)
    schema = os.environ.get("CLOUD_INIT_SCHEMA")
    if schema:
        with open(schema, encoding="utf-8") as file:
            validator = jsonschema.Draft4Validator(json.load(file))
        faults = [error.message for error in validator.iter_errors(config)]
        need(not faults, f"cloud-init's schema: {faults}")
    for command in config["runcmd"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    return config


def only(value, fields, where):
    """Every key of the object must be one that the provider documents, of the type it gives."""
    for key, item in value.items():
        need(key in fields, f"{where}: {key} is not documented")
        need(isinstance(item, fields[key]), f"{where}: {key} is {type(item).__name__}")


# docs.vast.ai, api-reference: "Instance Creation Fields", "Template Fields"; 2026-08.
VAST_INSTANCE = {
    "image": str, "template_hash_id": str, "label": str, "disk": int, "runtype": str,
    "target_state": str, "price": float, "env": dict, "onstart": str, "args_str": str,
    "image_login": str, "cancel_unavail": bool, "vm": bool, "volume_info": dict,
}
VAST_TEMPLATE = {
    "name": str, "image": str, "tag": str, "desc": str, "readme": str, "env": str, "onstart": str,
    "runtype": str, "args_str": str, "docker_login_repo": str, "docker_login_user": str,
    "docker_login_pass": str, "href": str, "repo": str, "extra_filters": dict,
    "recommended_disk_space": int, "private": bool, "volume_info": dict,
}


def vast():
    """CLI, REST body and template, each to the DELETE of the instance."""

    def world():
        gone = set()
        machine = {"cur_state": "running", "dph_total": 0.3, "gpu_name": "RTX 4090"}
        see = lambda *_: (200, {"instances": None if gone else machine})
        offer = lambda *_: (200, {"offers": [{"id": 77, "dph_total": 0.3}]})
        yes = {"success": True, "new_contract": 42}
        return World("vast", [
            ("GET", r".*api/v0/instances/42/", see),
            ("DELETE", r".*api/v0/instances/42/", end(gone, 200, {"success": True})),
            ("PUT", r"api/v0/bundles.*|api/v0/search.*", offer),
            ("POST", r"api/v0/bundles.*|api/v0/search.*", offer),
            ("PUT", r"api/v0/asks/77/", lambda *_: (200, yes)),
            ("GET", r"api/v0/users/current.*", lambda *_: (200, {"id": 1})),
        ])

    # What Vast sets in a container.
    given = {
        "CONTAINER_ID": "42", "CONTAINER_API_KEY": "key", "VAST_CONTAINERLABEL": "C.42",
        "PUBLIC_IPADDR": "192.0.2.1", "VAST_TCP_PORT_8080": "40001",
    }
    ends = ("DELETE", "console.vast.ai/api/v0/instances/42/")

    for bid in ([], ["gpu_name=RTX_4090 num_gpus=1", "0.25"]):
        here = world()
        more = {"VAST_URL": here.fake.url, "VAST_API_KEY": "key"}
        here.script(DEPLOY / "vast/launch.sh", *bid, env=JOB | more)
        body = json.loads(here.fake.seen("PUT", "api/v0/asks/77/")[0])
        need(body["image"] == JOB["ANNEAL_IMAGE"], "not our image")
        need(body["runtype"] == "args" and "-p 8080:8080" in body["env"], "no port is opened")
        need(body["price"] == (0.25 if bid else None), f"price is {body['price']}")
        has_job(body["env"])
        words = shlex.split(body["onstart"] or "") + body["args"]
        need(words[:2] == ["bash", "-c"], f"starts {words[:2]}")
        argv = shlex.split(words[2].removeprefix("exec "))
        env = {k: v for k, v in body["env"].items() if k[0] != "-"}
        here.container("vast", argv, given | env, sends=ends)

    body = json.loads(fill(DEPLOY / "vast/instance.json", COMMON + AWS_KEYS))
    only(body, VAST_INSTANCE, "instance.json")
    need(body["runtype"] == "args", "another runtype replaces the image's entry point")
    has_job(body["env"])
    env = {k: v for k, v in body["env"].items() if k[0] != "-"}
    world().container("vast", ["agent", *shlex.split(body["args_str"])], given | env, sends=ends)

    template = json.loads(fill(DEPLOY / "vast/template.json", ["ANNEAL_IMAGE"]))
    only(template, VAST_TEMPLATE, "template.json")
    need(template["args_str"] == body["args_str"], "template.json and instance.json differ")
    words = shlex.split(template["env"])
    need(words == ["-p", "8080:8080", "-e", "AGENT_LISTEN=0.0.0.0:8080"], f"env is {words}")


# docs.runpod.io, api-reference-v2: CreatePodRequest; 2026-08.
RUNPOD = {
    "name": str, "image": str, "args": str, "disk": int, "env": dict, "ports": list, "cloud": str,
    "gpu": dict, "cpu": dict, "dataCenterIds": list, "globalNetworking": bool, "mounts": dict,
    "registry": str, "startJupyter": bool, "startSsh": bool, "templateId": str,
}
RUNPOD_GPU = {"id": str, "count": int, "minCudaVersion": str, "allowedCudaVersions": list}


def runpod():
    """REST v2, to the action `terminate`."""
    gone = set()
    here = World("runpod", [
        ("POST", r"api\.runpod\.io/v2/pods", lambda *_: (201, {"id": "pod1"})),
        ("POST", r"api\.runpod\.io/v2/pods/pod1/action", end(gone, 204, "")),
        ("GET", r"api\.runpod\.io/v2/pods/pod1", once_gone(gone, {"status": "RUNNING"})),
    ])
    here.curl_to_fake()
    here.script(DEPLOY / "runpod/launch.sh", env=JOB | {"RUNPOD_API_KEY": "key"})
    body = json.loads(here.fake.seen("POST", r"api\.runpod\.io/v2/pods")[0])
    only(body, RUNPOD, "pod.json")
    only(body["gpu"], RUNPOD_GPU, "pod.json: gpu")
    need(body["cloud"] in ("SECURE", "COMMUNITY"), "cloud is neither SECURE nor COMMUNITY")
    has_job(body["env"])
    given = {"RUNPOD_POD_ID": "pod1", "RUNPOD_API_KEY": "key", "RUNPOD_DC_ID": "US-TX-3"}
    argv = ["agent", *shlex.split(body["args"])]
    here.container(
        "runpod", argv, given | body["env"], sends=("POST", r"api\.runpod\.io/v2/pods/pod1/action")
    )


def lambda_():
    """The launch by Lambda's own client's model, cloud-init, and the terminate by name."""
    # Named so that it shadows no keyword; the client checks names and enumerations.
    from lambda_ai_cloud_api_client.models.instance_launch_request import InstanceLaunchRequest

    gone = set()
    launched = []
    api = r"cloud\.lambdalabs\.com/api/v1"

    def launch(_, body):
        launched.append(json.loads(body))
        return 200, {"data": {"instance_ids": ["0920582c7ff041399e34823a0be62549"]}}

    def listed(*_):
        name = launched[0]["name"]
        machine = {"id": "0920", "name": name, "status": "terminated" if gone else "active",
                   "instance_type": {"name": "gpu_1x_a10", "price_cents_per_hour": 60}}
        return 200, {"data": [machine]}

    here = World("lambda", [
        ("POST", r"cloud\.lambda\.ai/api/v1/instance-operations/launch", launch),
        ("GET", api + "/instances", listed),
        ("GET", api + "/instances/0920", lambda *_: (200, {"data": listed()[1]["data"][0]})),
        ("POST", api + "/instance-operations/terminate", end(gone)),
    ])
    here.curl_to_fake()
    here.script(
        DEPLOY / "lambda/launch.sh", "gpu_1x_a10", "us-west-1", "my-key",
        env=JOB | {"LAMBDA_API_KEY": "key"},
    )
    request = InstanceLaunchRequest.from_dict(launched[0])
    need(not request.additional_properties, f"unknown: {request.additional_properties}")
    config = cloud_config(request.user_data)
    files = {file["path"]: file["content"] for file in config["write_files"]}
    _, paths, image, argv = docker_run(shlex.split(config["runcmd"][0]))
    need(image == JOB["ANNEAL_IMAGE"], f"starts {image}")
    env = env_file(files[paths[0]])
    has_job(env)
    here.container(
        "lambda", ["agent", *argv], env, sends=("POST", api + "/instance-operations/terminate")
    )


def aws():
    """The real aws against a simulated EC2, and an agent that terminates its instance there."""
    import boto3
    from moto.server import ThreadedMotoServer
    from parliament import analyze_policy_string

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}".replace("0.0.0.0", "127.0.0.1")
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    ec2 = boto3.client("ec2", endpoint_url=url, **keys)
    iam = boto3.client("iam", endpoint_url=url, **keys)
    instance = []
    metadata = {
        "instance-type": "g5.xlarge", "instance-life-cycle": "spot",
        "placement/region": "us-east-1",
        "iam/security-credentials/": "anneal",
        "iam/security-credentials/anneal": {
            "AccessKeyId": "ASIA", "SecretAccessKey": "s", "Token": "t",
        },
    }

    def imds(match, _):
        known = metadata | {"instance-id": instance[0]}
        return (200, known[match[1]]) if match[1] in known else (404, "")

    here = World("aws", [
        ("PUT", "aws-metadata/latest/api/token", lambda *_: (200, "token")),
        ("GET", "aws-metadata/latest/meta-data/(.*)", imds),
    ])
    env = JOB | {"AWS_ENDPOINT_URL": url}
    here.script(DEPLOY / "aws/setup.sh", env=env)
    instance[:] = [here.script(DEPLOY / "aws/launch.sh", env=env).strip()]
    need(instance[0].startswith("i-"), f"launch.sh prints {instance[0]!r}")

    role = iam.get_role_policy(RoleName="anneal", PolicyName="anneal")["PolicyDocument"]
    faults = analyze_policy_string(json.dumps(role)).findings
    need(not faults, f"policy.json: {[str(fault) for fault in faults]}")
    need("bucket-of-check/jobs/*" in json.dumps(role), f"policy.json: {role}")
    profile = iam.get_instance_profile(InstanceProfileName="anneal")["InstanceProfile"]
    need(profile["Roles"][0]["RoleName"] == "anneal", "the profile has no role")

    versions = ec2.describe_launch_template_versions(LaunchTemplateName="anneal", Versions=["1"])
    data = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    metadata_options = data["MetadataOptions"]
    need(data["InstanceInitiatedShutdownBehavior"] == "terminate", "shutdown only stops it")
    need(data["InstanceMarketOptions"]["MarketType"] == "spot", "not a spot machine")
    need(int(metadata_options["HttpPutResponseHopLimit"]) == 2, "a container has no metadata")
    need(data["IamInstanceProfile"]["Name"] == "anneal", "no instance profile")

    config = cloud_config(base64.b64decode(data["UserData"]).decode())
    need(config["runcmd"][-1] == "shutdown -h now", "nothing ends a machine without an image")
    files = {file["path"]: file["content"] for file in config["write_files"]}
    _, paths, image, argv = docker_run(shlex.split(config["runcmd"][0]))
    need(image == JOB["ANNEAL_IMAGE"], f"starts {image}")
    env = env_file(files[paths[0]])
    has_job(env, keys=False)
    here.container("aws", ["agent", *argv], env | {"AGENT_AWS_EC2_URL": url})
    state = ec2.describe_instances(InstanceIds=instance)["Reservations"][0]["Instances"][0]["State"]
    need(state["Name"] == "terminated", f"the instance is {state['Name']}")
    server.stop()


def gcp():
    """gcloud's own parser, the startup script, and the DELETE of the machine."""
    path = "projects/p/zones/us-central1-a/instances/anneal-1"
    gone = set()
    about = {
        "name": "anneal-1", "zone": "projects/1/zones/us-central1-a",
        "machineType": "projects/1/machineTypes/g2-standard-4",
        "scheduling": {"preemptible": "TRUE"},
    }
    token = {"access_token": "t", "expires_in": 3000}
    v1 = "gcp-metadata/computeMetadata/v1/"
    attributes = {}
    here = World("gcp", [
        ("GET", v1 + "project/project-id", lambda *_: (200, "p")),
        ("GET", v1 + r"instance/\?recursive=true", lambda *_: (200, about)),
        ("GET", v1 + "instance/service-accounts/default/token", lambda *_: (200, token)),
        ("GET", r"metadata\.google\.internal/computeMetadata/v1/instance/attributes/(.*)",
         lambda match, _: (200, attributes[match[1]])),
        ("DELETE", r"compute\.googleapis\.com/compute/v1/" + path, end(gone)),
        ("GET", r"compute\.googleapis\.com/compute/v1/" + path,
         once_gone(gone, {"status": "RUNNING"})),
    ])
    # The files are gone when the script ends.
    here.shim("gcloud", 'printf "%s\\0" "$@" >"$WORLD/gcloud"\n'
              'for arg in "$@"; do case $arg in *anneal-env=*)\n'
              'cp "${arg##*anneal-env=}" "$WORLD/anneal-env";; esac; done')
    here.script(DEPLOY / "gcp/launch.sh", env=JOB)
    words = (here.home / "gcloud").read_text(encoding="utf-8").rstrip("\0").split("\0")
    real = "/usr/bin/gcloud"
    if os.path.exists(real):
        # The temporary file is needed again; without an account the parser is all that it gets to.
        words = [re.sub("anneal-env=.*", f"anneal-env={here.home}/anneal-env", w) for w in words]
        done = subprocess.run(
            [real, *words, "--project=p", "--zone=us-central1-a"], capture_output=True, text=True,
            check=False, cwd=DEPLOY / "gcp", env=here.env({"CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}),
        )
        need("active account" in done.stderr, f"gcloud: {done.stderr}")
    attributes["anneal-image"] = JOB["ANNEAL_IMAGE"]
    attributes["anneal-env"] = (here.home / "anneal-env").read_text(encoding="utf-8")

    here.curl_to_fake()
    here.shim("nvidia-ctk", "true")
    here.shim("shutdown", 'echo shutdown >>"$WORLD/ended"')
    here.shim("docker", 'printf "%s\\0" docker "$@" >"$WORLD/docker"')
    script = (DEPLOY / "gcp/startup.sh").read_text(encoding="utf-8")
    copy = here.home / "startup.sh"
    copy.write_text(script.replace("/etc/anneal.env", f"{here.home}/etc-anneal.env"))
    here.script(copy)
    need((here.home / "ended").exists(), "startup.sh leaves the machine on")
    words = (here.home / "docker").read_text(encoding="utf-8").rstrip("\0").split("\0")
    _, paths, image, argv = docker_run(words)
    need(image == JOB["ANNEAL_IMAGE"], f"starts {image}")
    with open(paths[0], encoding="utf-8") as file:
        env = env_file(file.read())
    has_job(env)
    here.container(
        "gcp", ["agent", *argv], env, sends=("DELETE", r"compute\.googleapis\.com/.*" + path)
    )


def jarvislabs():
    """jl's own parser, and the destroy of the machine."""
    gone = set()
    machine = {"machine_id": 42, "template": "vm", "gpu_type": "L4", "region": "india-noida-01",
               "status": "Running", "is_spot": False}
    see = lambda *_: (200, {"success": True, "instances": [] if gone else [machine]})
    here = World("jarvislabs", [
        ("GET", r"backend\.jarvislabs\.net/users/fetch", see),
        ("POST", r"backend\.jarvislabs\.net/templates/vm/destroy\?machine_id=42",
         end(gone, 200, {"success": True})),
    ])
    # Parsed as the real client does, then answered here.
    here.shim("jl", f'exec python "{ROOT}/deploy/check/jl.py" "$@"')
    here.script(DEPLOY / "jarvislabs/launch.sh", "A100", env=JOB | {"JL_API_KEY": "key"})
    words = json.loads((here.home / "exec").read_text(encoding="utf-8"))
    need(words[:2] == ["sh", "-lc"], f"jl exec runs {words[:2]}")
    env, _, image, argv = docker_run(shlex.split(words[2]))
    need(image == JOB["ANNEAL_IMAGE"], f"starts {image}")
    has_job(env)
    here.container(
        "jarvislabs", ["agent", *argv], env,
        sends=("POST", r"backend\.jarvislabs\.net/templates/vm/destroy\?machine_id=42"),
    )


# docs.digitalocean.com, "Create a Machine with the Paperspace API"; 2024.
PAPERSPACE = {
    "name": str, "machineType": str, "templateId": str, "diskSize": int, "region": str,
    "publicIpType": str, "startOnCreate": bool, "autoShutdownEnabled": bool,
    "autoShutdownTimeout": int, "networkId": str, "startupScriptId": str,
}


def paperspace():
    """The API v1, ssh's one word, and the DELETE of the machine."""
    gone = set()
    api = r"api\.paperspace\.com/v1/machines"
    machine = {"id": "ps1", "state": "ready", "publicIp": "192.0.2.1", "region": "NY2",
               "machineType": "A4000"}
    here = World("paperspace", [
        ("POST", api, lambda *_: (200, {"data": {"id": "ps1"}})),
        ("GET", api + "/ps1", once_gone(gone, machine)),
        ("DELETE", api + "/ps1", end(gone)),
    ])
    here.curl_to_fake()
    # As at the other end: a shell reads one line.
    here.shim("ssh", 'printf "%s" "${@: -1}" >"$WORLD/ssh"')
    here.script(
        DEPLOY / "paperspace/launch.sh", "A4000", "t1", "East Coast (NY2)",
        env=JOB | {"PAPERSPACE_API_KEY": "key"},
    )
    only(json.loads(here.fake.seen("POST", api)[0]), PAPERSPACE, "launch.sh")
    env, _, image, argv = docker_run(
        shlex.split((here.home / "ssh").read_text(encoding="utf-8"))
    )
    need(image == JOB["ANNEAL_IMAGE"], f"starts {image}")
    has_job(env)
    here.container("paperspace", ["agent", *argv], env, sends=("DELETE", api + "/ps1"))
