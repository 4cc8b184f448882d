@echo off
rem Installs arcsup's guest tools in Windows. Run as administrator; asks nothing.
powershell.exe -NoProfile -ExecutionPolicy Bypass -File "%~dp0windows\install.ps1" %*
exit /b %ERRORLEVEL%
