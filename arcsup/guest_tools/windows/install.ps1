#Requires -RunAsAdministrator
# Installs in Windows what arcsup's guests need, from the drive that this script lies on. Asks
# nothing, may be run again, and writes what it did to C:\Windows\Temp\arcsup-guest-tools.log.
# Exits with 0, or with 1 when a step failed; the others are done all the same.

$ErrorActionPreference = 'Stop'
$tools = Join-Path (Split-Path -Parent $PSScriptRoot) 'tools'
$failed = @()
$restart = $false
Start-Transcript -Append -Path (Join-Path $env:SystemRoot 'Temp\arcsup-guest-tools.log') | Out-Null

function Find-Installer([string] $Pattern) {
    Get-ChildItem -Path (Join-Path $tools $Pattern) -ErrorAction SilentlyContinue |
        Select-Object -Last 1
}

# Runs a program to its end; 3010 and 1641 are Windows Installer's words for "restart needed".
function Invoke-Program([string] $Path, [string[]] $Arguments, [int[]] $Fine = @(0)) {
    $process = Start-Process -FilePath $Path -ArgumentList $Arguments -Wait -PassThru
    if ($process.ExitCode -in 3010, 1641) {
        $script:restart = $true
    } elseif ($process.ExitCode -notin $Fine) {
        throw "$Path ended with $($process.ExitCode)"
    }
}

function Invoke-Step([string] $Name, [scriptblock] $Step) {
    Write-Output "== $Name"
    try {
        & $Step
    } catch {
        Write-Output "   failed: $_"
        $script:failed += $Name
    }
}

# A driver whose publisher Windows does not know yet makes it ask; its catalogue names the publisher.
function Approve-Publisher([string] $Catalogue) {
    $certificate = (Get-AuthenticodeSignature -FilePath $Catalogue).SignerCertificate
    if ($null -eq $certificate) {
        throw "$Catalogue is not signed"
    }
    $store = New-Object System.Security.Cryptography.X509Certificates.X509Store 'TrustedPublisher', 'LocalMachine'
    $store.Open('ReadWrite')
    $store.Add($certificate)
    $store.Close()
}

Invoke-Step 'IVSHMEM driver' {
    $inf = Find-Installer 'ivshmem\ivshmem.inf'
    if ($inf) {
        # /install puts it on every device that it is for: Looking Glass's and Scream's.
        # 259: every such device has this driver already, or there is none now.
        Invoke-Program 'pnputil.exe' @('/add-driver', "`"$($inf.FullName)`"", '/install') @(0, 259)
    } else {
        Write-Output '   not on this medium; Looking Glass since B6 brings it along'
    }
}

Invoke-Step 'VirtIO drivers and agents' {
    $setup = Find-Installer 'virtio\*.exe'
    if ($setup) {
        Invoke-Program $setup.FullName @('/install', '/quiet', '/norestart')
    } else {
        Write-Output '   not on this medium'
    }
}

Invoke-Step 'SPICE guest tools' {
    $setup = Find-Installer 'spice\*.exe'
    if ($setup) {
        Invoke-Program $setup.FullName @('/S')
    } else {
        Write-Output '   not on this medium'
    }
}

Invoke-Step 'Looking Glass host' {
    $setup = Find-Installer 'looking-glass\looking-glass-host-setup.exe'
    if ($setup) {
        Invoke-Program $setup.FullName @('/S')
        # Of several IVSHMEM devices Looking Glass is to take the first: arcsup puts it before Scream's.
        $ini = Join-Path $env:ProgramFiles 'Looking Glass (host)\looking-glass-host.ini'
        if (-not (Test-Path $ini)) {
            Set-Content -Path $ini -Encoding Ascii -Value @('[os]', 'shmDevice=0')
        }
    } else {
        Write-Output '   not on this medium'
    }
}

Invoke-Step 'Scream' {
    $inf = Get-ChildItem -Path (Join-Path $tools 'scream') -Recurse -Filter 'Scream.inf' -ErrorAction SilentlyContinue |
        Where-Object { $_.FullName -notmatch 'arm64|x86' } | Select-Object -Last 1
    $devcon = Get-ChildItem -Path (Join-Path $tools 'scream') -Recurse -Filter 'devcon-x64.exe' -ErrorAction SilentlyContinue |
        Select-Object -Last 1
    if ($inf -and $devcon) {
        # How many MiB of shared memory the driver is to look for; without it, it sends to the network.
        $key = 'HKLM:\SYSTEM\CurrentControlSet\Services\Scream\Options'
        New-Item -Path $key -Force | Out-Null
        New-ItemProperty -Path $key -Name 'UseIVSHMEM' -PropertyType DWord -Value 2 -Force | Out-Null
        Approve-Publisher (Join-Path $inf.DirectoryName 'scream.cat')
        if (-not (Get-PnpDevice -Class 'MEDIA' -ErrorAction SilentlyContinue | Where-Object { $_.HardwareID -contains '*Scream' })) {
            Invoke-Program $devcon.FullName @('install', "`"$($inf.FullName)`"", '*Scream')
        }
    } else {
        Write-Output '   not on this medium'
    }
}

Invoke-Step 'Power saving off' {
    # A guest that sleeps looks like one that hangs, and nobody can press its power button.
    foreach ($what in 'standby', 'monitor', 'disk') {
        Invoke-Program 'powercfg.exe' @('/change', "$what-timeout-ac", '0')
    }
    # 1: the machine cannot hibernate anyway.
    Invoke-Program 'powercfg.exe' @('/hibernate', 'off') @(0, 1)
}

if ($failed) {
    Write-Output "failed: $($failed -join ', ')"
} else {
    Write-Output 'done'
}
if ($restart) {
    Write-Output 'Windows must be restarted'
}
Stop-Transcript | Out-Null
exit [int][bool] $failed
